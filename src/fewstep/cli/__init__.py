"""The `fewstep` command: one file a subcommand, `main.py` joins them and turns errors into one sentence."""

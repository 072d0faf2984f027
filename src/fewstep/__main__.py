"""`python -m fewstep` is the `fewstep` command."""

from fewstep.cli.main import run

if __name__ == "__main__":
    run()

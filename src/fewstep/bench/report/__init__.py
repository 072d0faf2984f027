"""The report: JSON first (`schema`); charts (`plots`), a self-contained page and the terminal's table drawn from it."""

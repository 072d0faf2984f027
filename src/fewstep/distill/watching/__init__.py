"""Looking at a student while it learns: its samples, its quality, and whether it collapses."""

"""What a run would cost before it is paid for: predictions from shapes, no weights and no device needed."""

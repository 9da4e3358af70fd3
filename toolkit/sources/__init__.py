"""Sources: live framework objects captured as program files."""

"""What a run writes down: its log, its curves, and where its time went."""

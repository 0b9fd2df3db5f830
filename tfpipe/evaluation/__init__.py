"""Each image of a split once, one table, and every metric from that table."""

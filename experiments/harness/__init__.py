"""What the experiments share: runs that are kept, conditions, statistics, text between markers."""

"""The parts that the experiments share: kept runs, conditions, statistics, tables and text between markers."""

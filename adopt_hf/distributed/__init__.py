"""Parameters that are distributed over processes: flat parameters of ZeRO, shards of DTensors."""

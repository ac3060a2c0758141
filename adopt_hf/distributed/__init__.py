"""How a parameter is spread over processes: flat parameters of ZeRO, shards of DTensors."""

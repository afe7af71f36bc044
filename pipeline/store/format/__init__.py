"""The format: specification, layout, codecs of depth and maps, shards."""

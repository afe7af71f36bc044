"""The contract between the stages: layout, codec, writer, reader, checks. Public face: `open_store`."""

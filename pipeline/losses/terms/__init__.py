"""Terms to add to a base loss, one file each; `registry.TERMS` lists them, `objective` has their contract."""

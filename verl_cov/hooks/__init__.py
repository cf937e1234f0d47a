"""Everything that touches verl's and vLLM's internals, one module per seam; each says which internals it leans on."""

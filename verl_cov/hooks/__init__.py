"""Every touch of verl's and vLLM's internals, one module a seam. Each module names what it leans on."""

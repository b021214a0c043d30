"""What programs cost: operations, compiled programs, layers, accelerators."""

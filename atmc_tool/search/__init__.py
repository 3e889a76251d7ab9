"""Layer-wise strategies: which layer keeps how much, and how to find out."""

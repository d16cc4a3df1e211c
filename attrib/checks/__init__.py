"""What every model must satisfy, checked numerically."""

"""Per-example gradients in factored form: squared norms and clipped sums, by the cheapest exact way."""

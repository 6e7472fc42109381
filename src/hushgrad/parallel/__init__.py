"""Several processes, one guarantee: who takes part, what they agree on before a step, and how their sums become one."""

"""What kernels for GPUs share: whether they can run, how they are launched, what their known answers are for."""

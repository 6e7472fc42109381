"""What GPU kernels share: whether they can run, how they are launched, and why each has a known answer."""

import os

# compiled kernels take 20 s to build and are compared with these in test_quantizers.py
os.environ.setdefault("ONCEQUANT_KERNELS", "eager")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

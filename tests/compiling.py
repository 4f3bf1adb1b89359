"""How tests compile where what is compiled is not what they test."""

# Optimising is most of what compiling takes.
QUICKLY = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"

"""How tests compile where what is compiled is not what they test."""

# Optimising is most of what compiling takes, and cutting a program for several threads more of it
# than they win.
QUICKLY = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)

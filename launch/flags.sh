#!/usr/bin/env bash
# Compiler flags by platform for overlapping communication with computation: the one place where launchers get them.
#
#   bash launch/flags.sh v5p             # VARIABLE=VALUES of a platform: v5e, v5p, v6e, tpu7x, gpu, cpu
#   bash launch/flags.sh --table         # every row: platforms | variable | flag | what it does | source
#
# launch/host.sh applies them on every host; what is already set there comes last and so wins. They change when things
# run, never what is computed. The rows are other people's measurements, not ours: nothing here was timed.
# libtpu 0.0.42.1 accepts every TPU row and compiles a small FSDP program with each platform's set (two slices included);
# jaxlib 0.10.2 knows every GPU row: experiments/bench/launch_flags.py asks again (both refuse names they do not know).
#
# Sources. M: AI-Hypercomputer/maxtext at e591f30, benchmarks/xla_flags_library.py (what it does) and the scripts in
# src/maxtext/configs/tpu/v5e and v5p, benchmarks/maxtext_trillium_model_configs.py (for which generation). N:
# NVIDIA/JAX-Toolbox at bcbbfa5, docs/GPU_performance.md. J: https://docs.jax.dev/en/latest/gpu_performance_tips.html.
# Left out on purpose: SparseCore offload on TPU7x, where M says that it is the default, and M's HOST_OFFLOAD_FLAGS. M
# adds those to jobs that offload activations, as ours does with model.remat=offload (pretrain_256 on v5e:16x16), and not
# by generation: among them are all experimental features of the scheduler and its memory limit at 100%, which would
# move every job of the platform. The offloading step compiles and fits without them (experiments/nextflow/compiled);
# what they gain nobody has measured here. To try them, set LIBTPU_INIT_ARGS: it comes after ours.
set -euo pipefail

table() {
  grep -v '^#' <<'ROWS'
v5e v5p v6e tpu7x | LIBTPU_INIT_ARGS | --xla_tpu_enable_data_parallel_all_reduce_opt=true | optimises the all-reduce of gradients between slices (DCN) | M DATA_PARALLEL_OVERLAP
v5e v5p v6e tpu7x | LIBTPU_INIT_ARGS | --xla_tpu_data_parallel_opt_different_sized_ops=true | pipelines those all-reduces over iterations of the loop over layers | M DATA_PARALLEL_OVERLAP
v5e v5p v6e | LIBTPU_INIT_ARGS | --xla_tpu_enable_async_collective_fusion=true | runs collectives inside fusions with computation | M CF_FOR_ALL_GATHER
v5e v5p v6e | LIBTPU_INIT_ARGS | --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true | does so for the all-gathers of FSDP | M CF_FOR_ALL_GATHER
v5e v5p v6e | LIBTPU_INIT_ARGS | --xla_tpu_enable_async_collective_fusion_multiple_steps=true | lets one collective span several fusions | M CF_FOR_ALL_GATHER
v5e v5p v6e | LIBTPU_INIT_ARGS | --xla_tpu_overlap_compute_collective_tc=true | overlaps collectives with the TensorCore's work | M CF_FOR_ALL_GATHER
v5e v5p v6e | LIBTPU_INIT_ARGS | --xla_enable_async_all_gather=true | splits all-gathers into start and done | M CF_FOR_ALL_GATHER
v5p | LIBTPU_INIT_ARGS | --xla_enable_async_collective_permute=true | splits collective-permutes into start and done | M ENABLE_ASYNC_COLLECTIVE_PERMUTE, v5p/64b.sh
v5p | LIBTPU_INIT_ARGS | --xla_tpu_enable_ag_backward_pipelining=true | gathers the next layer's weights early in the backward pass | M v5p/64b.sh
v5p | LIBTPU_INIT_ARGS | --xla_tpu_megacore_fusion_allow_ags=false | keeps all-gathers out of fusions over both cores | M DISABLE_MEGACORE_FUSION_ALLOW_AGS, v5p/64b.sh
v6e | LIBTPU_INIT_ARGS | --xla_tpu_scoped_vmem_limit_kib=98304 | vector memory of the running operation; the rest prefetches for later ones | M DENSE_VMEM_LIMIT_FLAG, llama3_1_8b_8192
v6e | LIBTPU_INIT_ARGS | --xla_tpu_use_minor_sharding_for_major_trivial_input=true | better memory layout of reduce-scatters | M LAYOUT_FOR_ALL_REDUCE_SCATTER
v6e | LIBTPU_INIT_ARGS | --xla_tpu_relayout_group_size_threshold_for_reduce_scatter=1 | the same, for groups of any size | M LAYOUT_FOR_ALL_REDUCE_SCATTER
v6e | LIBTPU_INIT_ARGS | --xla_tpu_assign_all_reduce_scatter_layout=true | the same, chosen when layouts are assigned | M LAYOUT_FOR_ALL_REDUCE_SCATTER
v6e | LIBTPU_INIT_ARGS | --xla_tpu_enable_async_collective_fusion_fuse_all_reduce=false | leaves all-reduces to the SparseCore: only one of the two may have them | M ENABLE_SPARSECORE_OFFLOADING_FOR_ALL_REDUCE
v6e | LIBTPU_INIT_ARGS | --xla_tpu_enable_sparse_core_collective_offload_all_reduce=true | all-reduces run on the SparseCore beside the TensorCore's work | M ENABLE_SPARSECORE_OFFLOADING_FOR_ALL_REDUCE
v6e | LIBTPU_INIT_ARGS | --xla_tpu_enable_all_reduce_offload_tracing=true | shows them in profiles | M ENABLE_SPARSECORE_OFFLOADING_FOR_ALL_REDUCE
v6e | LIBTPU_INIT_ARGS | --xla_tpu_use_tc_device_shape_on_sc=true | needed by SparseCore offload | M ENABLE_SPARSECORE_OFFLOADING_BASE_FLAGS
v6e | LIBTPU_INIT_ARGS | --xla_sc_enable_instruction_fusion=false | needed by SparseCore offload | M ENABLE_SPARSECORE_OFFLOADING_BASE_FLAGS
v6e | LIBTPU_INIT_ARGS | --xla_sc_disjoint_spmem=false | needed by SparseCore offload | M ENABLE_SPARSECORE_OFFLOADING_BASE_FLAGS
v6e | LIBTPU_INIT_ARGS | --xla_sc_disable_megacore_partitioning=true | needed by SparseCore offload | M ENABLE_SPARSECORE_OFFLOADING_BASE_FLAGS
gpu | XLA_FLAGS | --xla_gpu_enable_latency_hiding_scheduler=true | moves collectives so that they overlap with kernels | N Optimization level; J
gpu | XLA_FLAGS | --xla_gpu_enable_pipelined_all_gather=true | moves all-gathers of a loop over layers one iteration ahead | N Optimization level; J
gpu | XLA_FLAGS | --xla_gpu_enable_pipelined_reduce_scatter=true | the same for reduce-scatters | N Optimization level; J
gpu | XLA_FLAGS | --xla_gpu_enable_pipelined_all_reduce=true | the same for all-reduces | N Optimization level; J
gpu | XLA_FLAGS | --xla_gpu_enable_while_loop_double_buffering=true | two iterations in turn, so that the next one's gathers need no copies | N Optimization level
gpu | XLA_FLAGS | --xla_gpu_all_gather_combine_threshold_bytes=1073741824 | one all-gather a layer: at least its weights in bfloat16 (0.47 GB at 7B) | N FSDP; J
gpu | XLA_FLAGS | --xla_gpu_reduce_scatter_combine_threshold_bytes=1073741824 | one reduce-scatter a layer: at least its gradients (0.93 GB in float32 at 7B) | N FSDP; J
gpu | XLA_PYTHON_CLIENT_MEM_FRACTION | 0.9 | share of the GPU's memory that JAX takes; its default is 0.75 | N Flags to manage memory
gpu | CUDA_DEVICE_MAX_CONNECTIONS | 1 | one hardware queue, so that collectives start in the order scheduled; unset it on Blackwell (N) | N CUDA configuration
ROWS
}

platforms="v5e v5p v6e tpu7x gpu cpu"

case "${1:-}" in
  --table) table ;;
  -h | --help | "") sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" ;;
  *)
    if [[ " $platforms " != *" $1 "* ]]; then
      echo "error: $1 is not a platform; use one of: $platforms" >&2
      exit 2
    fi
    # One line a variable, its values separated by spaces, in the table's order.
    table | awk -F ' *[|] *' -v platform="$1" '
      index(" " $1 " ", " " platform " ") {
        if (!($2 in values)) names[++count] = $2
        values[$2] = values[$2] ($2 in values && values[$2] != "" ? " " : "") $3
      }
      END { for (i = 1; i <= count; i++) print names[i] "=" values[names[i]] }'
    ;;
esac

"""Texts of small compiled programs, written by hand in the ways that the compilers write them."""

NESTED = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,64]{1,0})->f32[]}, num_partitions=8

%inner_body (p: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %p = (s32[], bf16[8,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[8,64]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %gathered = bf16[64,64]{1,0:T(8,128)(2,1)S(1)} all-gather(%x), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %out = (s32[], bf16[8,64]{1,0}) tuple(%p, %x)
}

%inner_condition (p.1: (s32[], bf16[8,64])) -> pred[] {
  %p.1 = (s32[], bf16[8,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p.1), index=0
  %limit = s32[]{:T(128)} constant(4)
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%outer_body (q: (s32[], bf16[8,64])) -> (s32[], bf16[8,64]) {
  %q = (s32[], bf16[8,64]{1,0}) parameter(0)
  %one = s32[] constant(1)
  %start = s32[] copy(%one)
  %y = bf16[8,64]{1,0} get-tuple-element(%q), index=1
  %carried = (s32[], bf16[8,64]{1,0}) tuple(%start, %y)
  %loop = (s32[], bf16[8,64]{1,0}) while(%carried), condition=%inner_condition, body=%inner_body
  ROOT %next = (s32[], bf16[8,64]{1,0}) tuple(%loop, %y)
}

%outer_condition (q.1: (s32[], bf16[8,64])) -> pred[] {
  %q.1 = (s32[], bf16[8,64]{1,0}) parameter(0)
  ROOT %unknown = pred[] custom-call(%q.1), custom_call_target="Any"
}

ENTRY %main (a: bf16[8,64]) -> f32[] {
  %a = bf16[8,64]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %state = (s32[], /*index=1*/bf16[8,64]{1,0}) tuple(%zero, %a)
  %outer = (s32[], bf16[8,64]{1,0}) while(%state), condition=%outer_condition, body=%outer_body, \
backend_config={"known_trip_count":{"n":"5"}}
  %loss = f32[] constant(0)
  ROOT %total = f32[] all-reduce(%loss), channel_id=2, replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}, to_apply=%add
}
"""
"""An all-gather of eight devices in a loop of 3 (from 1 to 4) in a loop of 5; a scalar all-reduce over 4 of them."""

PIECES = """\
HloModule jit_step, num_partitions=4

%all-reduce-scatter.1 (r: f32[64,16]) -> f32[16,16] {
  %r = f32[64,16]{1,0} parameter(0)
  %reduced = f32[64,16]{1,0} all-reduce(%r), channel_id=7, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %part = f32[16,16]{1,0} dynamic-slice(%reduced), dynamic_slice_sizes={16,16}
}

%step_one (s: f32[16,16]) -> f32[16,16] {
  %s = f32[16,16]{1,0} parameter(0)
  ROOT %first = f32[64,16]{1,0} all-gather(%s), channel_id=9, replica_groups={}, frontend_attributes={chain_id="3"}
}

%step_two (t: f32[16,16]) -> f32[16,16] {
  %t = f32[16,16]{1,0} parameter(0)
  ROOT %second = f32[64,16]{1,0} all-gather(%t), channel_id=9, replica_groups={}, frontend_attributes={chain_id="3"}
}

ENTRY %main (a: f32[64,16], b: f32[16,16]) -> f32[] {
  %a = f32[64,16]{1,0} parameter(0)
  %b = f32[16,16]{1,0} parameter(1)
  %scattered = f32[16,16]{1,0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1,
    metadata={op_name="jit(step)/transpose"
    source_line=3}
  %one = f32[64,16]{1,0} fusion(%b), kind=kCustom, calls=%step_one
  %two = f32[64,16]{1,0} fusion(%b), kind=kCustom, calls=%step_two
  %begun = (f32[16,16]{1,0}, f32[16,16]{1,0}) collective-permute-start(%b), channel_id=4, source_target_pairs={{0,1}}
  %ended = f32[16,16]{1,0} collective-permute-done(%begun)
  %after = token[] after-all()
  %sent = (f32[16,16]{1,0}, u32[], token[]) send(%b, %after), channel_id=5, is_host_transfer=true
  ROOT %done = f32[] constant(0)
}
"""
"""A reduction to parts, one all-gather in two steps, a permutation, and something sent to another slice."""

/* sandbox/host_groups.h: the functions behind the rows of host_functions.c, a file a group.
 *
 * Each takes the guest's arguments in the order of its row and returns its result, or ends in
 * guest_trap or guest_suspend (guest_memory.h). What they do for the guest: docs/HOST_ABI.md.
 * Sandbox thread. */
#ifndef REALM_SANDBOX_HOST_GROUPS_H
#define REALM_SANDBOX_HOST_GROUPS_H

#include "sandbox/request.h"

/* host_request.c */
int64_t host_request_read(guest_call *c);
int64_t host_request_respond_text(guest_call *c);
int64_t host_request_respond_json(guest_call *c);
int64_t host_request_respond_error(guest_call *c);
int64_t host_request_log(guest_call *c);
int64_t host_request_now_ms(guest_call *c);
int64_t host_request_random(guest_call *c);

/* host_text.c */
int64_t host_text_model_open(guest_call *c);
int64_t host_text_model_info(guest_call *c);
int64_t host_text_tokenize(guest_call *c);
int64_t host_text_decode_token(guest_call *c);
int64_t host_text_chat_template(guest_call *c);

/* host_session.c */
int64_t host_session_open(guest_call *c);
int64_t host_session_fork(guest_call *c);
int64_t host_session_truncate(guest_call *c);
int64_t host_session_length(guest_call *c);
int64_t host_session_close(guest_call *c);
int64_t host_session_feed(guest_call *c);
int64_t host_session_step(guest_call *c);
int64_t host_session_step_begin(guest_call *c);
int64_t host_session_step_result(guest_call *c);
int64_t host_session_wait_any(guest_call *c);
int64_t host_session_logits(guest_call *c);
int64_t host_session_top_logits(guest_call *c);
int64_t host_session_bias(guest_call *c);
int64_t host_session_sample(guest_call *c);
int64_t host_session_constrain(guest_call *c);
int64_t host_session_adapter_use(guest_call *c);
int64_t host_session_embed(guest_call *c);

/* host_generate.c */
int64_t host_generate(guest_call *c);

/* host_tensor.c */
int64_t host_tensor_load_layer(guest_call *c);
int64_t host_tensor_weight(guest_call *c);
int64_t host_tensor_new(guest_call *c);
int64_t host_tensor_read(guest_call *c);
int64_t host_tensor_write(guest_call *c);
int64_t host_tensor_free(guest_call *c);
int64_t host_tensor_embed_tokens(guest_call *c);
int64_t host_tensor_matmul(guest_call *c);
int64_t host_tensor_rms_norm(guest_call *c);
int64_t host_tensor_layer_norm(guest_call *c);
int64_t host_tensor_apply_rope(guest_call *c);
int64_t host_tensor_attention(guest_call *c);
int64_t host_tensor_kv_cache_get(guest_call *c);
int64_t host_tensor_silu_mul(guest_call *c);
int64_t host_tensor_gelu_mul(guest_call *c);
int64_t host_tensor_add(guest_call *c);

/* host_map.c */
int64_t host_map_load_layer(guest_call *c);

/* host_tenant.c */
int64_t host_tenant_state_get(guest_call *c);
int64_t host_tenant_state_put(guest_call *c);
int64_t host_tenant_state_delete(guest_call *c);
int64_t host_tenant_call(guest_call *c);

#endif

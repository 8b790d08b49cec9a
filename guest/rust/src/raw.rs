//! The host functions as they are. docs/HOST_ABI.md has each one's arguments, traps and costs.

#[link(wasm_import_module = "realm")]
extern "C" {
    pub fn request_read(offset: usize, out: *mut u8, cap: usize) -> i32;
    pub fn respond_text(text: *const u8, size: usize) -> i32;
    pub fn respond_json(json: *const u8, size: usize) -> i32;
    pub fn respond_error(status: i32, text: *const u8, size: usize) -> i32;
    pub fn log(level: i32, text: *const u8, size: usize) -> i32;
    pub fn now_ms() -> i64;
    pub fn random() -> i64;

    pub fn model_open(name: *const u8, size: usize) -> i32;
    pub fn model_info(model: i32, out: *mut u8, cap: usize) -> i32;
    pub fn tokenize(
        model: i32,
        text: *const u8,
        size: usize,
        flags: i32,
        out: *mut i32,
        cap: usize,
    ) -> i32;
    pub fn decode_token(model: i32, token: i32, out: *mut u8, cap: usize) -> i32;
    pub fn chat_template(
        model: i32,
        json: *const u8,
        size: usize,
        out: *mut u8,
        cap: usize,
    ) -> i32;

    pub fn session_open(model: i32, options: *const u8, size: usize) -> i32;
    pub fn session_fork(session: i32) -> i32;
    pub fn session_truncate(session: i32, length: i32) -> i32;
    pub fn session_length(session: i32) -> i32;
    pub fn session_close(session: i32) -> i32;
    pub fn feed(session: i32, ids: *const i32, count: usize) -> i32;
    pub fn step(session: i32, token: i32) -> i32;
    pub fn step_begin(session: i32, token: i32) -> i32;
    pub fn step_result(session: i32) -> i32;
    pub fn wait_any(sessions: *const i32, count: usize, timeout_ms: i32) -> i32;
    pub fn logits(session: i32, out: *mut f32, cap: usize) -> i32;
    pub fn top_logits(session: i32, k: i32, ids: *mut i32, values: *mut f32) -> i32;
    pub fn bias(session: i32, ids: *const i32, values: *const f32, count: usize) -> i32;
    pub fn sample(session: i32, options: *const u8, size: usize) -> i32;
    pub fn constrain(session: i32, kind: i32, text: *const u8, size: usize) -> i32;
    pub fn adapter_use(session: i32, name: *const u8, size: usize) -> i32;
    pub fn embed(
        model: i32,
        ids: *const i32,
        count: usize,
        options: *const u8,
        size: usize,
        out: *mut f32,
        cap: usize,
    ) -> i32;
    pub fn generate(session: i32, options: *const u8, size: usize, out: *mut u8, cap: usize)
        -> i32;

    pub fn load_layer(model: i32, layer: i32) -> i32;
    pub fn weight(owner: i32, name: *const u8, size: usize) -> i32;
    pub fn tensor_new(rows: i32, cols: i32) -> i32;
    pub fn tensor_read(tensor: i32, first: i32, out: *mut f32, count: usize) -> i32;
    pub fn tensor_write(tensor: i32, first: i32, from: *const f32, count: usize) -> i32;
    pub fn tensor_free(tensor: i32) -> i32;
    pub fn embed_tokens(out: i32, model: i32, ids: *const i32, count: usize) -> i32;
    pub fn matmul(out: i32, weight: i32, x: i32) -> i32;
    pub fn rms_norm(out: i32, x: i32, weight: i32, epsilon: f32) -> i32;
    pub fn layer_norm(out: i32, x: i32, weight: i32, bias: i32, epsilon: f32) -> i32;
    pub fn apply_rope(
        x: i32,
        model: i32,
        layer: i32,
        positions: *const i32,
        count: usize,
    ) -> i32;
    pub fn attention_forward(
        session: i32,
        layer: i32,
        position: i32,
        q: i32,
        k: i32,
        v: i32,
        out: i32,
    ) -> i32;
    pub fn kv_cache_get(
        session: i32,
        layer: i32,
        values: i32,
        first: i32,
        count: i32,
        out: *mut f32,
        cap: usize,
    ) -> i32;
    pub fn silu_mul(out: i32, gate: i32, up: i32) -> i32;
    pub fn gelu_mul(out: i32, gate: i32, up: i32) -> i32;
    pub fn add(out: i32, x: i32, y: i32) -> i32;

    pub fn state_get(key: *const u8, size: usize, out: *mut u8, cap: usize) -> i32;
    pub fn state_put(key: *const u8, size: usize, value: *const u8, value_size: usize) -> i32;
    pub fn state_delete(key: *const u8, size: usize) -> i32;
    pub fn call(
        name: *const u8,
        size: usize,
        input: *const u8,
        input_size: usize,
        out: *mut u8,
        cap: usize,
    ) -> i32;
}

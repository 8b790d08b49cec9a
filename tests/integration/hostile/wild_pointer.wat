;; Points outside of its memory.
(module
  (import "realm" "respond_text" (func $respond_text (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_abi") (result i32) (i32.const 1))
  (func (export "realm_handle") (result i32)
    (call $respond_text (i32.const 0x7fffffff) (i32.const 16))))

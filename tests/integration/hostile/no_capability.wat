;; Reads raw logits without having been granted them.
(module
  (import "realm" "logits" (func $logits (param i32 i32 i32) (result i32)))
  (import "realm" "model_open" (func $model_open (param i32 i32) (result i32)))
  (import "realm" "session_open" (func $session_open (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_abi") (result i32) (i32.const 1))
  (func (export "realm_handle") (result i32)
    (call $logits (call $session_open (call $model_open (i32.const 0) (i32.const 0)) (i32.const 0) (i32.const 0))
      (i32.const 0) (i32.const 16))))

;; Uses a session after closing it.
(module
  (import "realm" "model_open" (func $model_open (param i32 i32) (result i32)))
  (import "realm" "session_open" (func $session_open (param i32 i32 i32) (result i32)))
  (import "realm" "session_close" (func $session_close (param i32) (result i32)))
  (import "realm" "session_length" (func $session_length (param i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_abi") (result i32) (i32.const 1))
  (func (export "realm_handle") (result i32)
    (local $session i32)
    (local.set $session (call $session_open (call $model_open (i32.const 0) (i32.const 0)) (i32.const 0) (i32.const 0)))
    (drop (call $session_close (local.get $session)))
    (call $session_length (local.get $session))))

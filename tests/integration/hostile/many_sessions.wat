;; Opens sessions without end.
(module
  (import "realm" "model_open" (func $model_open (param i32 i32) (result i32)))
  (import "realm" "session_open" (func $session_open (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_abi") (result i32) (i32.const 1))
  (func (export "realm_handle") (result i32)
    (local $session i32)
    (loop $again
      (local.set $session (call $session_open (call $model_open (i32.const 0) (i32.const 0)) (i32.const 0) (i32.const 0)))
      (br_if $again (i32.gt_s (local.get $session) (i32.const 0))))
    (local.get $session)))

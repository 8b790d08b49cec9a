;; A negative handle.
(module
  (import "realm" "step" (func $step (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_abi") (result i32) (i32.const 1))
  (func (export "realm_handle") (result i32)
    (call $step (i32.const -2147483648) (i32.const 1))))

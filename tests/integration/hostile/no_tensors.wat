;; Makes a tensor without the capability.
(module
  (import "realm" "tensor_new" (func $tensor_new (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_abi") (result i32) (i32.const 1))
  (func (export "realm_handle") (result i32)
    (call $tensor_new (i32.const 1) (i32.const 1))))

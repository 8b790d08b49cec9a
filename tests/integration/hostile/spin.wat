;; Never ends.
(module

  (memory (export "memory") 1)
  (func (export "realm_abi") (result i32) (i32.const 1))
  (func (export "realm_handle") (result i32)
    (loop $again (br $again))
    (i32.const 0)))

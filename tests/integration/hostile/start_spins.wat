;; Spins before realm_handle is ever called.
(module
  (memory (export "memory") 1)
  (func $spin (loop $again (br $again)))
  (start $spin)
  (func (export "realm_abi") (result i32) (i32.const 1))
  (func (export "realm_handle") (result i32) (i32.const 0)))

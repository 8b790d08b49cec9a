;; Logs without end.
(module
  (import "realm" "log" (func $log (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "realm_abi") (result i32) (i32.const 1))
  (func (export "realm_handle") (result i32)
    (loop $again
      (drop (call $log (i32.const 1) (i32.const 0) (i32.const 60000)))
      (br $again))
    (i32.const 0)))

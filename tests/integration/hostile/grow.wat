;; Takes memory until there is none, and writes to all of it.
(module

  (memory (export "memory") 1)
  (func (export "realm_abi") (result i32) (i32.const 1))
  (func (export "realm_handle") (result i32)
    (local $page i32)
    (loop $more
      (local.set $page (memory.grow (i32.const 16)))
      (if (i32.eq (local.get $page) (i32.const -1)) (then (unreachable)))
      (memory.fill (i32.mul (local.get $page) (i32.const 65536)) (i32.const 1) (i32.const 1048576))
      (br $more))
    (i32.const 0)))

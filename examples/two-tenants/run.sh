#!/usr/bin/env bash
# Quickstart: one server, two tenants with programs and limits of their own:  examples/two-tenants/run.sh [MODEL.gguf]
#
# Makes a data folder in a temporary place, serves it on a free port of this machine, and removes it at the end.
. "$(dirname "$0")/../lib.sh"

folder=$(mktemp -d)
server=
finish() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    [ -z "$server" ] || wait "$server" 2>/dev/null || true
    rm -rf "$folder"
}
trap finish EXIT
export REALM_DATA=$folder/data

# 1. Two customers with limits of their own, and a key for each; it is shown this once.
"$example_realm" tenant create acme --requests-per-minute 500 --weight 2
"$example_realm" tenant create globex --requests-per-minute 3 --tokens-per-day 2000
acme=$("$example_realm" key create --tenant acme 2>/dev/null)
globex=$("$example_realm" key create --tenant globex 2>/dev/null)

# 2. The server. Every request needs a key from now on.
"$example_realm" serve --model "small=$example_model" --port 0 >"$folder/out" 2>"$folder/log" &
server=$!
until grep -q 'serves at' "$folder/out"; do
    kill -0 "$server" 2>/dev/null || { cat "$folder/log" >&2; exit 1; }
    sleep 0.1
done
url=$(sed -n 's/.*serves at //p' "$folder/out")

# 3. A program for each. The running server takes them within a quarter of a second, without a restart.
"$example_realm" deploy "$example_build/guest/clerk.wasm" --tenant globex --name form
"$example_realm" deploy "$example_build/guest/poet.wasm" --tenant acme --name verse
until curl -sSf "$url/v1/programs/verse" -H "authorization: Bearer $acme" -d '{"prompt":"the sea","max_tokens":16}' \
    >"$folder/verse" 2>"$folder/why"; do
    kill -0 "$server" 2>/dev/null && grep -q 404 "$folder/why" || { cat "$folder/why" "$folder/log" >&2; exit 1; }
    sleep 0.1
done
echo "acme's own program says:"
cat "$folder/verse"
echo

say() { # KEY PATH BODY
    curl -sS "$url$2" -H "authorization: Bearer $1" -H 'content-type: application/json' -d "$3"
    echo
}
question='{"model":"small","messages":[{"role":"user","content":"What is the capital of France?"}],"max_tokens":16,"temperature":0}'
echo "globex asks the same path, and there is nothing:"
say "$globex" /v1/programs/verse '{"prompt":"the sea"}'
echo "globex's own program says:"
say "$globex" /v1/programs/form '{"prompt":"Anna is 31 years old."}'
echo "globex chats until its requests of this minute are spent:"
for _ in 1 2 3; do
    say "$globex" /v1/chat/completions "$question"
done
echo "acme is not disturbed:"
say "$acme" /v1/chat/completions "$question"

# 4. Who used what.
"$example_realm" usage --by tenant,program,model

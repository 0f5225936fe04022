#!/bin/sh
# Fills what is empty and leaves what is there: the default bundle, the secrets and the topics.
set -eu
default=/opt/fraudlib/artifacts
artifacts=/srv/fraudlib/artifacts

for bundle in "$default"/*/; do
    name=$(basename "$bundle")
    [ -d "$artifacts/$name" ] && continue
    rm -rf "$artifacts/.$name.part"
    cp -R "$bundle" "$artifacts/.$name.part"
    mv "$artifacts/.$name.part" "$artifacts/$name"
done
# The pointer comes last, and only where there is none: a later start must not undo a promotion.
if [ ! -s "$artifacts/current" ]; then
    cp "$default/history.jsonl" "$artifacts/history.jsonl"
    cp "$default/current" "$artifacts/.current.part"
    mv "$artifacts/.current.part" "$artifacts/current"
fi

# Grafana reads its password as another user; nobody else mounts this volume.
password=/srv/fraudlib/grafana/password
if [ ! -s "$password" ]; then
    python -c 'import secrets; print(secrets.token_urlsafe(24))' > "$password.part"
    chmod 444 "$password.part"
    mv "$password.part" "$password"
fi

fraudlib api-key stack --add keys/hashes --write keys/stack > /dev/null
# An empty one is what a start that was cut short left.
[ -s keys/ids ] || { rm -f keys/ids; fraudlib id-key keys/ids > /dev/null; }

exec fraudlib topics

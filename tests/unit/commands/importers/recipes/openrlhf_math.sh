#!/bin/bash
# The flags of OpenRLHF's examples/scripts/train_prorlv2_math_hybrid_engine.sh, grouped in arrays.
SCRIPT_DIR="$(dirname "$0")"
MODEL_PATH="deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
DATASET_PATH="OpenRLHF/dapo-math-17k"
SAVE_PATH="exp/DeepSeek-R1-Qwen-1.5B"
REWARD_FUNC_PATH="examples/python/math_reward_func.py"

ENGINE_ARGS=(
   --vllm.num_engines 8 --vllm.tensor_parallel_size 1 --vllm.gpu_memory_utilization 0.75
   --vllm.sync_backend nccl --vllm.enforce_eager --vllm.enable_sleep --ds.enable_sleep
   --ref.num_nodes 1 --ref.num_gpus_per_node 8
   # --reward.num_nodes 1
   --actor.num_nodes 1 --actor.num_gpus_per_node 8 --train.colocate_all
   --ds.zero_stage 3 --ds.param_dtype bf16 --ds.packing_samples --actor.gradient_checkpointing_enable
)
ALGORITHM_ARGS=(
   --algo.advantage.estimator reinforce_baseline
   --algo.advantage.gamma 1.0
   --algo.kl.init_coef 1e-4 --algo.kl.use_loss --algo.kl.estimator k2
   --algo.dynamic_filtering_enable
   --algo.dynamic_filtering_range 0 1
   --actor.eps_clip_low_high 0.2 0.27
   --algo.advantage.is_correction_enable
   --algo.advantage.is_correction_threshold 0.5 5.0
   --algo.advantage.is_correction_type icepop
   --reward.stop_properly_penalty_coef 0.0
)

ray job submit --address="http://127.0.0.1:8265" --runtime-env-json='{"working_dir": "."}' \
   -- python3 -m openrlhf.cli.train_ppo_ray \
   ${ENGINE_ARGS[@]} \
   ${ALGORITHM_ARGS[@]} \
   --actor.model_name_or_path ${MODEL_PATH} \
   --reward.remote_url ${REWARD_FUNC_PATH} \
   --ckpt.output_dir ${SAVE_PATH} --ckpt.path "${SAVE_PATH}/ckpt" --ckpt.save_steps 5 --ckpt.save_hf \
   --rollout.batch_size 512 --rollout.n_samples_per_prompt 16 --train.batch_size 1024 \
   --train.dynamic_batch_enable --train.max_tokens_per_gpu 32768 --train.num_episodes 100 \
   --data.max_len 9216 --rollout.max_new_tokens 8192 --actor.adam.lr 1e-6 \
   --data.prompt_dataset ${DATASET_PATH} --data.input_key prompt --data.label_key label --data.apply_chat_template \
   --eval.dataset OpenRLHF/aime-2024 --eval.steps 5 --eval.temperature 1.0 --eval.n_samples_per_prompt 4

# PPO with a critic and a served reward model, in the flags of OpenRLHF 0.9.
read -r -d '' training_commands <<EOF
openrlhf.cli.train_ppo_ray \
   --pretrain OpenRLHF/Llama-3-8b-sft-mixture \
   --remote_rm_url http://localhost:5000/get_reward \
   --critic_pretrain OpenRLHF/Llama-3-8b-rm-700k \
   --micro_train_batch_size 8 \
   --train_batch_size 128 \
   --micro_rollout_batch_size 16 \
   --rollout_batch_size 1024 \
   --max_samples 100000 \
   --max_epochs 1 \
   --generate_max_len 1024 \
   --zero_stage 3 \
   --actor_learning_rate 5e-7 \
   --critic_learning_rate 9e-6 \
   --init_kl_coef 0.01 \
   --prompt_data OpenRLHF/prompt-collection-v0.1 \
   --input_key context_messages \
   --apply_chat_template \
   --normalize_reward \
   --vllm_num_engines 4 \
   --colocate_all_models \
   --adam_offload \
   --packing_samples \
   --gradient_checkpointing
EOF
python3 -m $training_commands

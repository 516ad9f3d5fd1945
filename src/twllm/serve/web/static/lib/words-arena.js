// Words of the arena, the leaderboard and the comparison: key: [正體中文, English].

export const ARENA_WORDS = {
  arena_title: ["兩個匿名模型，哪個答得好？", "Two hidden models: which answers better?"],
  arena_more: ["問同一個問題，讀完兩邊的回答再投票。投票後才會揭曉模型名稱。", "Ask one question, read both answers, vote. The names are shown after the vote."],
  arena_placeholder: ["問兩個模型同一個問題", "Ask both models the same question"], arena_follow: ["繼續追問，或在上面投票", "Ask on, or vote above"],
  side_a: ["模型 A", "Model A"], side_b: ["模型 B", "Model B"], vote: ["投票", "Vote"], vote_a: ["A 比較好", "A is better"], vote_b: ["B 比較好", "B is better"], vote_tie: ["一樣好", "Equally good"], vote_bad: ["都不好", "Both bad"],
  vote_comment: ["理由（可不填）", "Reason (optional)"], vote_stored: ["已記錄，謝謝！", "Stored, thank you!"], next_battle: ["再比一場", "Another round"], to_board: ["看排行榜", "See the leaderboard"], you_chose: ["你選了：{choice}", "You chose: {choice}"],
  vote_not_stored: ["投票沒有存下來：{why}", "The vote was not stored: {why}"], side_failed: ["這一邊出錯了：{why}", "This side failed: {why}"], both_done_first: ["兩邊都答完就能投票。", "You can vote when both have finished."],
  vote_not_counted: ["對話裡問到或出現了模型的名字，所以這一票存下來了，但不計入排名。", "The names of the models were asked for or mentioned, so this vote is stored but not counted in the ranking."],
  arena_consent: ["投票會存下：問題、兩邊的回答、你的選擇與理由、是否同意訓練、時間，和瀏覽器隨機編號的雜湊值。勾選同意的才會用於訓練。請不要輸入個人資料。", "A vote stores: the question, both answers, your choice and reason, whether you consent to training, the time, and a hash of this browser’s random number. Only with consent is it used for training. Please enter no personal data."],
  board_title: ["模型排行榜", "Leaderboard"], board_more: ["來自競技場的投票，用 Bradley–Terry 模型算出評分；橫線是 95% 信賴區間，區間重疊表示還分不出高下。", "From votes in the arena: Bradley–Terry ratings. The lines are 95% intervals; where they overlap the order is not settled."],
  board_empty: ["還沒有投票。到競技場比一場吧！", "No votes yet. Go to the arena!"], rank: ["名次", "Rank"], name: ["模型", "Model"], rating: ["評分", "Rating"], interval: ["95% 區間", "95% interval"], battles: ["場數", "Battles"], won: ["勝", "Won"], lost: ["敗", "Lost"], tied: ["平", "Tied"],
  board_sum: ["共 {battles} 場投票", "{battles} votes"], board_updated: ["更新：{when}", "updated {when}"], board_method: ["算法：{method}", "Method: {method}"], picture_of_board: ["各模型評分與 95% 信賴區間", "Ratings of the models with 95% intervals"],
  compare_title: ["同一題，看各個模型怎麼答", "One question, the models side by side"], compare_more: ["挑一題台灣文化題，或寫自己的問題，再選二到四個模型。", "Choose a question on Taiwan’s culture or write your own, then two to four models."],
  topic: ["主題", "Topic"], all_topics: ["全部主題", "All topics"], question: ["題目", "Question"], own_question: ["自己出題", "My own question"], dice: ["隨機一題", "A random one"], models: ["模型", "Models"],
  compare_placeholder: ["寫下要問的問題", "Write the question"], pick_models: ["請選二到四個模型。", "Choose two to four models."], one_model_only: ["這台伺服器只有一個模型，沒有可以比較的對象。", "This server has one model only: nothing to compare."],
  reference: ["參考答案", "Reference answer"], working: ["回答中…", "Answering…"], seconds: ["{seconds} 秒", "{seconds} s"], letters: ["{number} 字", "{number} characters"],
};

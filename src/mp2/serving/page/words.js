// What the page says, in two languages.

const WORDS = {
  en: {
    other: "中文", skip: "To the content", tagline: "Few-shot Chinese text tasks on one frozen encoder",
    key: "API key", make: "Make a task", use: "Use a task",
    examples: "Examples", examplesHint: "A table with a header line: CSV, TSV, JSON or JSONL. About 8 to 16 rows of each label are enough.",
    examplesPlaceholder: "text,label\n味道很好，送得也快,好评\n等了一个小时，汤都凉了,差评\n…",
    file: "Open a file", sample: "Load a sample…", check: "Check",
    understood: "What was understood", family: { classification: "Classification", pair: "Sentence pair", choice: "Multiple choice", extraction: "Extraction", reading: "Reading comprehension" },
    kind: (name) => `${name}. `,
    line: (r, s) => `${r.rows} usable rows: ${s.train} to learn from, ${s.dev} to choose the best moment, ${s.held_back} held back for an honest score.`,
    lineBad: (r) => `${r.rows} usable rows. The examples cannot be used yet:`,
    rowsOf: (n) => `${n}`, row: (n) => (n ? `row ${n}: ` : ""), moreProblems: (n) => `… and ${n} more`,
    few: (v) => `Label “${v.label}” has ${v.rows} examples; ${v.few} or more are better.`,
    repeated: (v) => `${v.count} examples repeat others.`, contradicted: (v) => `${v.count} texts stand there with different answers.`,
    long: (v) => `${v.count} texts are longer than the model's window of ${v.window} tokens and are cut.`,
    unread: (v) => `Columns that are not read: ${v.columns}.`,
    taskFile: "Task file (for experts)", taskFileHint: "This is the task as it was understood. Change wording or labels, then check again.", recheck: "Check with this task file",
    adapt: "Adapt", name: "Name", method: "Method", calibrate: "Unusual labels: calibrate first", adaptButton: "Adapt", cancel: "Cancel",
    queued: (n) => (n ? `Waiting: ${n} jobs before this one.` : "Waiting…"), running: "Loading the model…",
    tuning: (s, d) => `${s}: score on the choosing rows ${d}`, stages: ["Stage I: router", "Stage II: prompts"], labelStages: ["Stage I: router", "Stage II: label words"], stage: (n) => `Stage ${n}`, start: "Start",
    done: (s) => `Done in ${s} s.`, failed: "It failed: ", cancelled: "Cancelled.",
    devAxis: "score (choosing rows)", lossAxis: "loss (learning rows)", curveText: (d) => `Curve of tuning; the last score is ${d}.`, kept: "The moment that is best on the choosing rows is kept.",
    held: (m) => `${{ accuracy: "accuracy", f1: "F1" }[m] ?? m} on rows that nothing has seen`,
    interval: (a, b, n) => `95 % interval ${a} – ${b}, from ${n} rows`, notUtf8: (f) => `${f} is not UTF-8 text; save it as "CSV UTF-8".`, noHeld: "Nothing was held back, so there is no honest score: give at least 3 examples of each label.",
    mistakes: "Answers on the held-back rows", expected: "Expected", got: "Answer", text: "Text", probability: "Probability", right: "right", wrong: "wrong",
    task: "Task", download: "Download", delete: "Delete", confirmDelete: (n) => `Delete task ${n}? This cannot be undone.`,
    noTasks: "There are no tasks yet. Make one above.", answer: "Answer", shortcut: "or Ctrl + Enter", options: "Options, one per line",
    noAnswer: "(no answer)", about: "About this task", router: "Router", routerHint: "How much of each prompt (column) each layer (row) takes; every row adds up to 1.",
    layer: (n) => `layer ${n}`, resembles: "Known tasks it resembles", resemblesHint: "Cosine of the routers, from −1 to 1, after what all tasks share is taken away.",
    facts: { family: "Kind", labels: "Labels", method: "Method", shots: "Learned from", dev: "Score, choosing rows", held: "Score, held-back rows", tuned: "Tuned numbers", seconds: "Seconds", bytes: "Size" },
    rows: (n) => `${n} rows`, ofRows: (v, n) => `${v} (${n} rows)`, nameHint: "a–z, 0–9, . _ -", replace: (n) => `Task ${n} exists. Replace it?`,
    problem: () => "",  // the server's own words are English
  },
  zh: {
    other: "English", skip: "跳到正文", tagline: "一个冻结的编码器，少量样本，学会中文文本任务",
    key: "API 密钥", make: "新建任务", use: "使用任务",
    examples: "样本", examplesHint: "带表头的表格：CSV、TSV、JSON 或 JSONL。每个标签约 8 到 16 行就够了。",
    examplesPlaceholder: "text,label\n味道很好，送得也快,好评\n等了一个小时，汤都凉了,差评\n…",
    file: "打开文件", sample: "载入示例…", check: "检查",
    understood: "理解结果", family: { classification: "文本分类", pair: "句对判断", choice: "多项选择", extraction: "抽取", reading: "阅读理解" },
    kind: (name) => `${name}。`,
    line: (r, s) => `可用 ${r.rows} 行：${s.train} 行用于学习，${s.dev} 行用于挑选最佳时刻，${s.held_back} 行留作公正评分。`,
    lineBad: (r) => `可用 ${r.rows} 行。样本还不能使用：`,
    rowsOf: (n) => `${n}`, row: (n) => (n ? `第 ${n} 行：` : ""), moreProblems: (n) => `……另有 ${n} 处`,
    few: (v) => `标签“${v.label}”只有 ${v.rows} 个样本，最好不少于 ${v.few} 个。`,
    repeated: (v) => `有 ${v.count} 个样本是重复的。`, contradicted: (v) => `有 ${v.count} 段文本带着不同的答案。`,
    long: (v) => `有 ${v.count} 段文本超过模型窗口（${v.window} 个词元），会被截短。`,
    unread: (v) => `没有用到的列：${v.columns}。`,
    taskFile: "任务文件（高级）", taskFileHint: "这是系统理解的任务。可以修改措辞或标签，再检查一次。", recheck: "按此任务文件检查",
    adapt: "适配", name: "名称", method: "方法", calibrate: "标签少见：先校准", adaptButton: "开始适配", cancel: "取消",
    queued: (n) => (n ? `排队中：前面还有 ${n} 个。` : "排队中……"), running: "正在载入模型……",
    tuning: (s, d) => `${s}：挑选行得分 ${d}`, stages: ["第一阶段：路由器", "第二阶段：提示"], labelStages: ["第一阶段：路由器", "第二阶段：标签词"], stage: (n) => `第 ${n} 阶段`, start: "起点",
    done: (s) => `完成，用时 ${s} 秒。`, failed: "失败：", cancelled: "已取消。",
    devAxis: "得分（挑选行）", lossAxis: "损失（学习行）", curveText: (d) => `适配曲线，最后得分 ${d}。`, kept: "保留挑选行上最好的时刻。",
    held: (m) => `留出行上的${{ accuracy: "准确率", f1: "F1" }[m] ?? m}（训练从未见过）`,
    interval: (a, b, n) => `95% 区间 ${a} – ${b}，共 ${n} 行`, notUtf8: (f) => `${f} 不是 UTF-8 文本；请另存为“CSV UTF-8”。`, noHeld: "没有留出行，因此没有公正的评分：每个标签至少需要 3 个样本。",
    mistakes: "留出行上的回答", expected: "应为", got: "回答", text: "文本", probability: "概率", right: "对", wrong: "错",
    task: "任务", download: "下载", delete: "删除", confirmDelete: (n) => `删除任务 ${n}？无法恢复。`,
    noTasks: "还没有任务，请先在上面新建。", answer: "回答", shortcut: "或按 Ctrl + Enter", options: "选项，每行一个",
    noAnswer: "（没有答案）", about: "任务说明", router: "路由器", routerHint: "每一层（行）取用每个提示（列）的比例，每行之和为 1。",
    layer: (n) => `第 ${n} 层`, resembles: "最相似的已知任务", resemblesHint: "去掉所有任务共有的部分后，路由器之间的余弦，从 −1 到 1。",
    facts: { family: "类型", labels: "标签", method: "方法", shots: "学习行数", dev: "挑选行得分", held: "留出行得分", tuned: "调节的参数", seconds: "用时（秒）", bytes: "大小" },
    rows: (n) => `${n} 行`, ofRows: (v, n) => `${v}（${n} 行）`, nameHint: "a–z, 0–9, . _ -", replace: (n) => `任务 ${n} 已存在，要替换吗？`,
    problem: (type) => ({
      unreadable: "请求无法读取。", unauthorised: "需要有效的 API 密钥。", forbidden: "服务器不允许这样做。", not_found: "没有这个地址。",
      method_not_allowed: "这个地址不接受这种请求。", stalled: "传输中断太久。", too_large: "内容太大。", busy: "服务器正忙，请稍后再试。",
      late: "来不及在时限内回答，请稍后再试。", invalid: "内容不符合要求。", keys: "服务器的密钥文件有问题。", rate: "请求太频繁，请稍后再试。",
      bad_examples: "样本还不能使用。", unknown_job: "没有这个适配过程。", taken: "名称已被使用。", unknown_task: "没有这个任务。",
      bad_adapter: "任务文件夹无法使用。", bad_folder: "服务器的任务目录无法使用。", internal: "服务器内部出错。",
    })[type] ?? "",
  },
};

let language = localStorage.getItem("mp2-language") || (navigator.language.startsWith("zh") ? "zh" : "en");

// The words of a key; those that take values are functions.
export const say = (name, ...values) => {
  const found = WORDS[language][name];
  return typeof found === "function" ? found(...values) : found;
};

export function speak(next) {
  language = next ?? (language === "zh" ? "en" : "zh");
  localStorage.setItem("mp2-language", language);
  show();
}

// Put the words into every element that asks for them.
export function show() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = `mp2 · ${say("tagline")}`;
  for (const element of document.querySelectorAll("[data-words]")) element.textContent = say(element.dataset.words);
  for (const element of document.querySelectorAll("[data-placeholder]")) element.placeholder = say(element.dataset.placeholder);
  document.getElementById("language").textContent = say("other");
}

// Which TeX command is which character, for text/maths.js.

// Without a prototype: \constructor must not be found.
export const bare = (entries) => Object.assign(Object.create(null), entries);
const table = (text) => bare(Object.fromEntries(text.trim().split(/\s+/).map((pair) => [pair.slice(0, pair.indexOf(":")), pair.slice(pair.indexOf(":") + 1)])));

export const LETTERS = table(`
alpha:α beta:β gamma:γ delta:δ epsilon:ϵ varepsilon:ε zeta:ζ eta:η theta:θ vartheta:ϑ iota:ι kappa:κ lambda:λ mu:μ nu:ν xi:ξ
omicron:ο pi:π varpi:ϖ rho:ρ varrho:ϱ sigma:σ varsigma:ς tau:τ upsilon:υ phi:ϕ varphi:φ chi:χ psi:ψ omega:ω
Gamma:Γ Delta:Δ Theta:Θ Lambda:Λ Xi:Ξ Pi:Π Sigma:Σ Upsilon:Υ Phi:Φ Psi:Ψ Omega:Ω
infty:∞ partial:∂ nabla:∇ hbar:ℏ ell:ℓ Re:ℜ Im:ℑ aleph:ℵ emptyset:∅ varnothing:∅ angle:∠ triangle:△ top:⊤ bot:⊥ imath:ı jmath:ȷ
prime:′ degree:° ldots:… dots:… cdots:⋯ vdots:⋮ ddots:⋱ dotsc:… dotsb:⋯ square:□ checkmark:✓`);

export const OPERATORS = table(`
times:× div:÷ cdot:⋅ pm:± mp:∓ ast:∗ star:⋆ circ:∘ bullet:• oplus:⊕ ominus:⊖ otimes:⊗ odot:⊙ setminus:∖ wedge:∧ vee:∨ land:∧ lor:∨
lnot:¬ neg:¬ cap:∩ cup:∪ leq:≤ le:≤ geq:≥ ge:≥ neq:≠ ne:≠ ll:≪ gg:≫ approx:≈ sim:∼ simeq:≃ cong:≅ equiv:≡ propto:∝ parallel:∥
perp:⊥ mid:∣ nmid:∤ in:∈ notin:∉ ni:∋ subset:⊂ subseteq:⊆ supset:⊃ supseteq:⊇ forall:∀ exists:∃ nexists:∄ therefore:∴ because:∵
to:→ rightarrow:→ leftarrow:← leftrightarrow:↔ Rightarrow:⇒ Leftarrow:⇐ Leftrightarrow:⇔ implies:⟹ iff:⟺ impliedby:⟸ mapsto:↦
longrightarrow:⟶ longleftarrow:⟵ Longrightarrow:⟹ uparrow:↑ downarrow:↓ rightleftharpoons:⇌ hookrightarrow:↪ models:⊨ vdash:⊢
colon:: lt:< gt:> And:& langle:⟨ rangle:⟩ lfloor:⌊ rfloor:⌋ lceil:⌈ rceil:⌉ lvert:| rvert:| vert:| lVert:‖ rVert:‖ Vert:‖
lbrace:{ rbrace:} lbrack:[ rbrack:] backslash:\\ prec:≺ succ:≻ doteq:≐ triangleq:≜ asymp:≍`);

export const BIG = table(`sum:∑ prod:∏ coprod:∐ bigcup:⋃ bigcap:⋂ bigoplus:⨁ bigotimes:⨂ bigvee:⋁ bigwedge:⋀`);
export const INTEGRALS = table(`int:∫ iint:∬ iiint:∭ oint:∮`);
export const ACCENTS = table(`hat:^ widehat:^ bar:¯ vec:→ dot:˙ ddot:¨ tilde:~ widetilde:~ check:ˇ breve:˘ acute:´ grave:\` overline:‾ overrightarrow:→ overleftarrow:← overbrace:⏞`);
export const BELOW = table(`underline:_ underbrace:⏟`);
export const NAMES = new Set(`sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh coth log ln lg exp det dim ker deg gcd hom arg sgn tr rank`.split(" "));
export const LIMITS = new Set("lim max min sup inf limsup liminf argmax argmin Pr".split(" "));
export const SPACES = bare({ ",": 0.167, ":": 0.222, ">": 0.222, ";": 0.278, " ": 0.25, "!": -0.167, quad: 1, qquad: 2, thinspace: 0.167, enspace: 0.5 });

// Letters in bold, blackboard, script: the mathematical alphabets of Unicode, as offsets from A, a and 0.
const ALPHABETS = bare({
  mathbf: [0x1d400, 0x1d41a, 0x1d7ce], boldsymbol: [0x1d468, 0x1d482, 0x1d7ce], bm: [0x1d468, 0x1d482, 0x1d7ce],
  mathbb: [0x1d538, 0x1d552, 0x1d7d8], mathcal: [0x1d49c, 0x1d4b6], mathscr: [0x1d49c, 0x1d4b6], mathfrak: [0x1d504, 0x1d51e],
  mathsf: [0x1d5a0, 0x1d5ba, 0x1d7e2], mathtt: [0x1d670, 0x1d68a, 0x1d7f6],
});
const HOLES = { // letters that Unicode had already given another place
  mathbb: { C: "ℂ", H: "ℍ", N: "ℕ", P: "ℙ", Q: "ℚ", R: "ℝ", Z: "ℤ" },
  mathcal: { B: "ℬ", E: "ℰ", F: "ℱ", H: "ℋ", I: "ℐ", L: "ℒ", M: "ℳ", R: "ℛ", e: "ℯ", g: "ℊ", o: "ℴ" },
  mathfrak: { C: "ℭ", H: "ℌ", I: "ℑ", R: "ℜ", Z: "ℨ" },
};
HOLES.mathscr = HOLES.mathcal;
export const isAlphabet = (name) => name in ALPHABETS;

export function styled(letter, alphabet) {
  const bases = ALPHABETS[alphabet];
  const hole = HOLES[alphabet]?.[letter];
  if (!bases || hole) return hole ?? letter;
  for (const [first, last, base] of [["A", "Z", bases[0]], ["a", "z", bases[1]], ["0", "9", bases[2]]]) {
    if (letter.length === 1 && letter >= first && letter <= last && base) return String.fromCodePoint(base + letter.charCodeAt(0) - first.charCodeAt(0));
  }
  return letter;
}
